"""compare: the device's command, and its page."""

from __future__ import annotations

from minigpt_edge_runtime.commands.compare import make_command
from minigpt_edge_runtime.compare.comparison import Comparison


def _render(comparison: Comparison) -> str:
    from minigpt_edge.report.compare_page import render_page

    return render_page(comparison)


compare = make_command(_render)
