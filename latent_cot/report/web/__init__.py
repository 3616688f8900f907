"""The report of `latent-cot report`: what a run did, as one HTML file that needs nothing but a browser.

    logs.py      what the run has logged: settings, figures of every step, accuracies, rationales
    samples.py   what only the run's model can tell: rationales of test questions, scored token by token
    page.py      the HTML file
    assets/      its template, style and script; vendor/ holds the libraries for its plots

What Python hands to the script is JSON, described in `docs/report.md`. Importing this package loads no torch.
"""

FORMAT = 1
"""Version of the report's JSON."""
