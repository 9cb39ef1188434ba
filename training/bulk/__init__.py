"""The scores of what no request could hold: folders, csv and parquet, part by part.

1. ``sources``   looks at IN: which items there are, in which order, and a fingerprint of all that.
2. ``plan``      cuts the items into parts of one size and writes that down beside the results;
                 a later run goes on only where its own plan is the same.
3. ``local`` or ``cluster`` hands part numbers to processes, which are all alike.
4. ``scoring``   in such a process: reads the part's items by the service's own decoding, prepares,
                 scores and decides by the service's own core.
5. ``parts``     writes ``part-00042.parquet`` under another name, syncs it and renames it.

A part is a function of (input, artifact, options, its number) alone: doing it twice, here or on
another machine, writes the same bytes under the same name. That is why every item is in the results
exactly once whatever was killed and whoever repeats it. Nothing here loads torch.
"""
