"""The artifact on one page: what training writes, the service reads, and nothing else passes.

``models/active.json``              {"image": "name/version", "timeseries": "name/version",
                                    "vectors": "name/version"}; any of them may be missing
``models/<name>/<version>/``        one artifact; never changed once it is there
    ``manifest.json``               everything below by name and sha256; input rule, family, params,
                                    calibration in numbers, metrics, provenance (``manifest``)
    ``calibration.npz``             ``scores``: sorted raw scores of held-out normal items
                                    (``calibration``)
    ``golden.npz``                  raw inputs (``images`` uint8, ``rows`` and ``stride``, or
                                    ``vectors``) with the ``scores`` and ``maps`` seen at publishing
    ``*.onnx  *.npz  *.faiss``      graphs and arrays of the family; plain data, no pickles
    ``recalibration.json``          of a version that differs from another by its calibration: which
                                    scores in use it comes from
    ``CARD.md``                     for people

``preprocess`` turns pixels, rows and vectors into model inputs on both sides; ``store`` lists,
verifies and publishes; ``errors`` is the tree of exceptions.

``manifest.FORMAT`` is raised when a service of the previous release would read a new artifact
wrongly or not at all: a member added to, removed from or renamed in ``Manifest`` (unknown members
are refused), another meaning of a member, another preprocessing step, other arrays in the files
above. It is not raised for a new family, new
``params`` or a new kind of input: what does not know them refuses them by name. To raise
it: FORMAT + 1 and ``Manifest.format`` with it, an entry in CHANGELOG.md, publish the shipped models
again (the old folders stay readable by the old release only), and say so in the README.
"""
