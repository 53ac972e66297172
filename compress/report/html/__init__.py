"""report.html: the folder of a run (`run_folder`) becomes a view model (`view`), and that a page (`page`, `templates/`)."""

PAGE = "report.html"
