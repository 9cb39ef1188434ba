"""The online half: a request comes in, a calibrated anomaly score goes out.

The way of a request, in eight lines:

1. ``request_context``  gives it an id and a clock; every answer and log line carries the id.
2. ``routes``           check the query and ask the ``catalog`` for a scorer that is ready.
3. ``decoding``         the body, within its limits, becomes uint8 pixels or float rows.
4. ``batching``         lets it in or says 503, and gives it one of a bounded number of threads.
5. ``contract``         prepares the input by the manifest's rule, the same code as in training.
6. ``detectors``        the family's raw score and residual map, through ``runtime``.
7. ``contract``         calibrates: raw score -> p-value -> score and decision.
8. ``rendering``        maps go back into the user's frame; ``problems`` words whatever went wrong.

Edge (1-4, 8) knows HTTP; core (``scoring``, ``detectors``, ``contract``) knows only numbers.
"""
