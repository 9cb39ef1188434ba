"""OFFLINE: from normal data to a checked, versioned artifact. The way of an artifact:

1. ``__main__``     reads a command: fit, publish, evaluate; ``commands`` does it
2. ``config``       a TOML becomes data, an input rule and prepared splits
3. ``data``         a loader gives raw items split into train, validation, calibration, test
4. ``families``     one of them fits networks in stages, each resumable (``run``), by several
                    processes where wanted (``processes``)
5. ``publish``      exports the networks (``export``) and opens the files as the service would
6.                  calibrates on the calibration split; ``parity`` checks the files against torch
7. ``evaluation``   measures the test split once, beside controls; ``card`` writes it down
8.                  records golden examples, then ``service.contract.store`` renames the folder

``bulk`` uses an artifact instead of making one: it scores files, and needs none of the above.
``benchmark`` fits the systems of a published table, ``tune`` looks for settings; neither publishes.
``recalibrate`` makes a new version of one by what the service scored, without training.

Only ``service.scoring``, ``service.detectors``, ``service.runtime`` and ``service.contract`` are
imported from the other side, and by ``bulk`` its readers of pictures and tables and its rule of
decision: what will score is what calibrated.
"""
