"""How the pages of docs/ become a site: `make docs`. Nothing is fetched; the notebook is shown as it was last run."""

from __future__ import annotations

from tskd import __version__

project, author, release = "tskd", "the tskd authors", __version__
extensions = ["myst_nb", "sphinx.ext.autodoc"]
exclude_patterns = ["_build", "jupyter_execute"]  # the latter is where myst-nb puts notebooks
nb_execution_mode = "off"
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["mystnb.unknown_mime_type"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
html_theme = "furo"
html_title = "tskd"
html_copy_source = False
