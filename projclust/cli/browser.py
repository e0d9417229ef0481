"""Opening a page for whoever asked for it, where there is a screen to show it on."""

import os
import sys
import webbrowser
from pathlib import Path


def open_page(page: Path) -> bool:
    """Open a file in the browser; whether that was tried, for without a screen nothing is.

    There a browser of the terminal would take it over, in the middle of a script.
    """
    has_screen = sys.platform in ("win32", "darwin") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    if not (has_screen or os.environ.get("BROWSER")):
        return False
    try:
        return webbrowser.open(page.resolve().as_uri())
    except (webbrowser.Error, OSError):
        return False
