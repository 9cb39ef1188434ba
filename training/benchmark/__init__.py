"""Systems measured on the papers' tables, resumable cell by cell.

A table (``configs/tables/<name>.toml``) says which data, which cases of it and which systems. A
cell is one row (a system, or one read-out of it) on one case with one seed: data -> fit -> export
-> the detector over the exported files -> figures of the test split. Nothing is published, nothing
is calibrated, and nothing is selected on what is measured.

Modules: ``definition`` a table and the cells of it, ``reading`` its file, ``digest`` what decides a
cell, ``current`` which stored cells still hold; ``measuring`` the figures of one detector;
``cell`` fits and measures; ``workers`` does so in several processes; ``runner`` decides which cell
is next and stores what came out (``results``); ``report`` writes it as markdown beside the
published figures (``training.tables``). ``artifacts`` is another benchmark: that of what was
published.
"""
