"""`fathom matrix`: every run of a matrix."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from deploy.cli.experiments import find_file
from deploy.cli.options import EXIT_FAILED, folder_mode
from deploy.cli.output import complain, make_console, print_rows, say
from deploy.run.interrupt import Interruption
from shared.errors import ConfigError
from shared.files import to_json


@dataclass(frozen=True)
class Matrix:
    """Every run of a matrix of collector depths, learner depths and objectives; runs that are done are skipped."""

    matrix: Positional[Path]
    """The matrix's YAML file, or the name of a shipped one; `fathom experiments` lists these."""
    out: Path | None = None
    """Folder of the results; none: a folder under runs/ with the file's name."""
    parallel: int | None = None
    """Largest number of runs at once; none: as many as Ray has room for, or one where they ask for no resources."""
    overwrite: bool = False
    """Replace those runs in the folder that have another configuration; without it they are kept."""
    in_process: bool = False
    """Each run in one process, without Ray and Reverb."""
    deterministic: bool = False
    """Equal numbers in every run on GPUs, too, with --in-process: XLA leaves out sums in a random order, and chooses no
    program by its speed. Costs speed there; CPUs are deterministic without it."""
    dir_mode: str = "0700"
    """Mode of new folders, as chmod's octal number; 0750 lets your group read them, too."""
    dry_run: bool = False
    """Print the cost and what becomes of the runs in the folder, and start nothing."""
    json: bool = False
    """Print the dry run as one JSON object."""

    def execute(self) -> int:
        """Runs what is not done, then writes the summary. Returns the exit status: 0 if all runs are done."""
        dir_mode = folder_mode(self.dir_mode)
        self._check_options()
        path = find_file(self.matrix, "matrix")
        from deploy.matrix.expand import expand, load_matrix
        from deploy.mode import check_mode, choose_mode, make_deterministic
        from deploy.run.forks import serve_forks
        from deploy.telemetry.wandb_mirror import check_installed

        matrix = load_matrix(path)
        runs = expand(matrix)
        mode = choose_mode(self.in_process, together=False)
        check_mode(runs[0].experiment, mode, "experiment.")
        if self.deterministic:
            make_deterministic(mode)
        check_installed(runs[0].experiment)
        with nullcontext() if self.dry_run else serve_forks(run.experiment for run in runs):
            return self._begin(matrix, path, dir_mode)

    def _begin(self, matrix: Any, path: Path, dir_mode: int) -> int:
        from deploy.matrix.estimate import estimate_matrix
        from deploy.run.run_dir import lock_folder
        from deploy.run.setup import prepare_jax

        prepare_jax(cpu_only=True)  # the GPUs belong to the runs
        estimate = estimate_matrix(matrix)  # also refuses runs that cannot be made, before any starts
        out = (self.out or Path("runs") / path.stem).absolute()
        if self.dry_run:
            return self._print_plan(estimate, self._make_agenda(matrix, estimate, out))
        with lock_folder(out.resolve(), "--out"):
            return self._execute(matrix, self._make_agenda(matrix, estimate, out), out, dir_mode)

    def _make_agenda(self, matrix: Any, estimate: dict[str, Any], out: Path) -> Any:
        """Returns the runs sorted by the content of `out`. Raises ConfigError if they cannot be executed there."""
        from deploy.matrix.capacity import check_port
        from deploy.matrix.estimate import check_disk
        from deploy.matrix.expand import expand
        from deploy.matrix.folder import check_out, make_agenda

        check_out(out, matrix, self.overwrite)
        agenda = make_agenda(matrix, out, self.overwrite)
        check_port(agenda.waiting.values(), self.parallel, self.in_process)
        check_disk(estimate, agenda.waiting, out, expand(matrix)[0].experiment.supervision.disk_reserve_gb)
        return agenda

    def _execute(self, matrix: Any, agenda: Any, out: Path, dir_mode: int) -> int:
        """Executes what waits and writes the summary. Returns the exit status."""
        from deploy.matrix.execute import execute
        from deploy.matrix.results import collect_results, write_results

        Interruption().install()
        not_done = execute(matrix, agenda, out, self.parallel, self.in_process, say, dir_mode)
        results = collect_results(out, matrix)
        write_results(out, results)
        if results["cells"]:
            print_rows(results["cells"])
        for name in results["missing"]:
            if name not in not_done:
                not_done[name] = "its summary.json cannot be read"
                complain(f"{name}: {not_done[name]}; its results are left out")
        if not_done:
            complain(f"{len(not_done)} of {agenda.num_runs} runs are not done: {', '.join(not_done)}")
        say(f"results: {out}")
        return EXIT_FAILED if not_done else 0

    def _check_options(self) -> None:
        if self.parallel is not None and self.parallel < 1:
            raise ConfigError(f"--parallel: {self.parallel} is not positive")
        if self.json and not self.dry_run:
            raise ConfigError("--json: prints the dry run; add --dry-run, or leave it out")

    def _print_plan(self, estimate: dict[str, Any], agenda: Any) -> int:
        """Prints the dry run. Returns the exit status: 0 if all runs would execute or are done."""
        from deploy.matrix.estimate import table, total

        if self.json:
            say(to_json(estimate | {"done": agenda.done, "kept": agenda.kept, "replaced": agenda.replaced}))
        else:
            make_console().print(table(estimate))
            for line in ("", total(estimate), *estimate["notes"], *agenda.lines):
                say(line)
        return EXIT_FAILED if agenda.kept else 0
