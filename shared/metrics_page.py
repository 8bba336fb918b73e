"""The page `docs/metrics.md`, made from the catalogue of metrics."""

from shared.metrics_catalogue import CATALOGUE, EVERYWHERE, RATES


def metrics_page() -> str:
    """Returns `docs/metrics.md`."""
    lines = [
        "# Metrics",
        "",
        "Made by `make docs` from `shared/metrics_catalogue.py`. A run writes one JSON object a line to",
        "`metrics/<role>.jsonl` in its directory; the driver alone writes. A resumed run appends a line with",
        "`rewound_to` where rows are undone, and readers leave those rows out. A number that is not finite is null.",
        "TensorBoard groups are given where a name has none of its own; gauges are what Prometheus finds as",
        "`ray_fathom_...`.",
    ]
    for kind in EVERYWHERE:
        lines += ["", f"## `{kind}`", "", "| metric | unit | meaning | TensorBoard | gauge |", "|---|---|---|---|---|"]
        lines += [
            f"| `{metric.name}` | {metric.unit} | {metric.meaning} | {metric.group} | {metric.gauge} |"
            for metric in CATALOGUE
            if kind in metric.files
        ]
    lines += ["", "## Gauges that are rates", "", "| gauge | unit | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | {unit} | {meaning} |" for name, (unit, meaning) in RATES.items()]
    return "\n".join(lines) + "\n"
