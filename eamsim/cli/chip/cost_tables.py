"""The tables and notes of `eamsim cost`."""

from __future__ import annotations

from dataclasses import asdict

from rich.table import Table

from cost_model.work.counts import Macs, share
from eamsim.cli.output import table


def report(model: str, facts: dict[str, int], rows: list[dict]) -> tuple[str | Table, ...]:
    """Where the MACs of the dense network are, what each row saves of them, and why it cannot be more."""
    dense = Macs(**rows[0]["dense_macs_by_layer"])
    sizes = facts | {"activation_bytes": rows[0]["activation_bytes"]}
    return (
        f"{model}, one image, nothing frozen:",
        "",
        layer_table(dense),
        "",
        *(f"{name.replace('_', ' ')}: {size:,}" for name, size in sizes.items()),
        "",
        "What freezing buys (M = 10^6 MACs, MACs saved: of the full scope):",
        "",
        saving_table(rows),
        *excluded_note(rows),
        *unneeded_note(rows[0]),
        "",
        *footnote(dense),
    )


def layer_table(dense: Macs) -> Table:
    """MACs of the dense network by layer, and both totals."""
    totals = {"Eq. 9 (paper scope)": dense.paper, "full scope": dense.full}
    rows = [
        (name, f"{macs:,}", f"{2 * macs:,}", f"{100 * share(macs, dense.full):.2f}")
        for name, macs in (asdict(dense) | totals).items()
        if macs
    ]
    return table(("layer", "MACs", "2x (FLOPs)", "share %"), rows)


def saving_table(rows: list[dict]) -> Table:
    """One line per row: the share of the MACs saved, the MACs left, and the bytes of weights and frozen maps.

    With the pairs that a Swin's shifted windows exclude, tau has a column of its own.
    """
    lines, excludes = [], any(row["tau_with_excluded"] != row["tau"] for row in rows)
    for row in rows:
        saved = 100 * share(row["macs_saved_full"], row["macs_saved_full"] + row["macs_full"])
        millions = (f"{row[key] / 1e6:,.3f}" for key in ("macs_full", "macs_paper"))
        stored = f"{row['weight_bytes'] / 1e6:.3f}", f"{row['map_bytes']:,}"
        source = "estimate" if row["estimated"] else "masks"
        taus = f"{row['tau']:.4g}", *([f"{row['tau_with_excluded']:.4g}"] if excludes else [])
        lines.append((row["softmax"], *taus, f"{saved:.2f}", *millions, *stored, source))
    taus = ("tau", *(["with excluded"] if excludes else []))
    return table(("softmax", *taus, "MACs saved %", "full, M", "Eq. 9, M", "weights MB", "map bytes", "from"), lines, keys=1 + len(taus))


def excluded_note(rows: list[dict]) -> tuple[str, ...]:
    """What the column `with excluded` holds, where there is one."""
    if all(row["tau_with_excluded"] == row["tau"] for row in rows):
        return ()
    return ("", "Pairs that shifted windows exclude are 0 whatever the image, and no part of tau; `with excluded` counts them as frozen.")


def unneeded_note(row: dict) -> tuple[str, ...]:
    """What zero-skip and structure would save of real masks."""
    if row["estimated"]:
        return ()
    shares = {
        name: f"{row[f'{name}_macs']:,} ({share(row[f'{name}_macs'], row['macs_full']):.2%})"
        for name in ("zero_code", "structured", "unread")
    }
    return (
        "",
        f"Of the MACs left, frozen codes that mean zero or excluded pairs take {shares['zero_code']}; q, k and scores that no code",
        f"depends on {shares['structured']}; rows that nobody reads {shares['unread']}.",
    )


def footnote(dense: Macs) -> tuple[str, ...]:
    """What the savings mean, in plain words, with the ceilings of Amdahl's law."""
    scores = share(dense.scores, dense.full)
    heads = scores + share(2 * dense.qkv / 3, dense.full)
    return (
        "paper: the softmax denominator needs every score, so freezing saves nothing.",
        f"renormalised: frozen scores are not computed. At most the QK^T share is saved: {scores:.2%} ({1 / (1 - scores):.3f}x).",
        f"Only a wholly frozen head drops its q and k projections too. At most (tau = 1): {heads:.2%} ({1 / (1 - heads):.3f}x).",
        "A.V is computed in full either way. Estimates: round(tau * N^2) scattered weights per head. MACs are not cycles.",
    )
