"""`fathom matrix`: every run of a matrix."""

import json
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from deploy.cli.options import EXIT_FAILED, folder_mode, interrupt_on_signals
from deploy.cli.output import complain, make_console, print_rows, say
from shared.errors import ConfigError


@dataclass(frozen=True)
class Matrix:
    """Every run of a matrix of collector depths and learner depths; runs that are done are skipped."""

    matrix: Positional[Path]
    """The matrix's YAML file."""
    out: Path | None = None
    """Folder of the results; none: a folder under runs/ with the file's name."""
    parallel: int | None = None
    """Largest number of runs at once; none: as many as Ray has room for, or one where they ask for no resources."""
    in_process: bool = False
    """Each run in one process, without Ray and Reverb."""
    dir_mode: str = "0700"
    """Mode of new folders, as chmod's octal number; 0750 lets your group read them, too."""
    dry_run: bool = False
    """Print the cost, and start nothing."""
    json: bool = False
    """Print the dry run as one JSON object."""

    def execute(self) -> int:
        """Runs what is not done, then writes the summary. Returns the exit status: 0 if all runs are done."""
        dir_mode = folder_mode(self.dir_mode)
        from deploy.matrix.estimate import estimate_matrix, table, total
        from deploy.matrix.execute import execute
        from deploy.matrix.expand import expand, load_matrix
        from deploy.matrix.folder import check_out
        from deploy.matrix.results import collect_results, write_results
        from deploy.run.setup import prepare_jax
        from deploy.telemetry.wandb_mirror import check_installed

        config = load_matrix(self.matrix)
        if not self.dry_run:
            check_installed(expand(config)[0].experiment)
            if self.parallel is not None and self.parallel < 1:
                raise ConfigError(f"--parallel: {self.parallel} is not positive")
        prepare_jax(cpu_only=True)  # the GPUs belong to the runs
        estimate = estimate_matrix(config)  # also refuses runs that cannot be made, before any starts
        if self.dry_run and self.json:
            print(json.dumps(estimate))
            return 0
        if self.dry_run:
            make_console().print(table(estimate))
            say("\n" + total(estimate))
            return 0
        out = (self.out or Path("runs") / self.matrix.stem).absolute()
        check_out(out, config)
        interrupt_on_signals()
        failures = execute(config, out, self.parallel, self.in_process, say, dir_mode)
        results = collect_results(out, config)
        write_results(out, results)
        if results["cells"]:
            print_rows(results["cells"])
        failed = [name for name, reason in failures.items() if reason]
        if failed:
            complain(f"{len(failed)} of {len(failures)} runs failed: {', '.join(failed)}")
        make_console().print(f"results: {out}", highlight=False)
        return EXIT_FAILED if failed else 0
