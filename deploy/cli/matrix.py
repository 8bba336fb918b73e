"""`fathom matrix`: every run of a matrix."""

import json
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from deploy.cli.options import EXIT_FAILED, folder_mode, interrupt_on_signals
from deploy.cli.output import complain, make_console, print_rows
from shared.errors import ConfigError


@dataclass(frozen=True)
class Matrix:
    """Every run of a matrix of collector depths and learner depths; runs that are done are skipped."""

    matrix: Positional[Path]
    """The matrix's YAML file."""
    out: Path | None = None
    """Where results go; none: a folder under runs/ with the file's name."""
    parallel: int | None = None
    """At most so many runs at once; none: as many as Ray has room for, or one where they ask for no resources."""
    in_process: bool = False
    """Each run in one process, without Ray and Reverb."""
    dir_mode: str = "0700"
    """Who may look into new folders, as chmod's octal number; 0750: your group, too."""
    dry_run: bool = False
    """Print what it will cost, and start nothing."""
    json: bool = False
    """Print the dry run as one JSON object."""

    def execute(self) -> int:
        """Runs what is not done, then writes the summary. The exit status says whether all runs are done."""
        dir_mode = folder_mode(self.dir_mode)
        if self.dry_run:
            return _print_estimate(self.matrix, self.json)
        from deploy.matrix.estimate import estimate_matrix
        from deploy.matrix.execute import execute
        from deploy.matrix.expand import expand, load_matrix
        from deploy.matrix.folder import check_out
        from deploy.matrix.results import collect_results, write_results
        from deploy.run.setup import prepare_jax
        from deploy.telemetry.wandb_mirror import check_installed

        config = load_matrix(self.matrix)
        check_installed(expand(config)[0].experiment)
        if self.parallel is not None and self.parallel < 1:
            raise ConfigError(f"--parallel: {self.parallel} is not positive")
        prepare_jax(cpu_only=True)  # the GPUs belong to the runs
        estimate_matrix(config)  # refuses what cannot be run before anything starts
        out = (self.out or Path("runs") / self.matrix.stem).absolute()
        check_out(out, config)
        interrupt_on_signals()
        console = make_console()

        def say(text: str) -> None:
            console.print(text, highlight=False, markup=False, soft_wrap=True)

        outcomes = execute(config, out, self.parallel, self.in_process, say, dir_mode)
        results = collect_results(out, config)
        write_results(out, results)
        if results["cells"]:
            print_rows(results["cells"])
        failed = [outcome.run.name for outcome in outcomes if outcome.reason]
        if failed:
            complain(f"{len(failed)} of {len(outcomes)} runs failed: {', '.join(failed)}")
        console.print(f"results: {out}", highlight=False)
        return EXIT_FAILED if failed else 0


def _print_estimate(path: Path, as_json: bool) -> int:
    from deploy.matrix.estimate import estimate_matrix, table, total
    from deploy.matrix.expand import load_matrix
    from deploy.run.setup import prepare_jax

    prepare_jax(cpu_only=True)
    planned = estimate_matrix(load_matrix(path))
    if as_json:
        print(json.dumps(planned))
        return 0
    console = make_console()
    console.print(table(planned))
    console.print("\n" + total(planned), highlight=False)
    return 0
