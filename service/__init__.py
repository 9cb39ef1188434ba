"""The online half: a request comes in, a calibrated anomaly score goes out.

The way of a request, in eight lines:

1. ``request_context``  gives it an id and a clock; ``keys`` asks who sent it.
2. ``routes``           by ``direct`` (scoring) or FastAPI; the ``catalog`` has a ready scorer.
3. ``cache``            may know the answer: artifact, options and bytes are the same.
4. ``batching``         lets it in or says 503; one thread takes what waits together.
5. ``decoding``         within limits, bytes become pixels or numbers; ``contract`` prepares them.
6. ``detectors``        the family's raw score and residual map, through ``runtime``.
7. ``contract``         calibrates: p-value; ``decision`` decides on the whole request.
8. ``rendering``        maps go back into the user's frame; ``problems`` words whatever went wrong.

What was answered is counted (``telemetry``, ``drift``) and remembered for ``feedback``, behind it.

Edge (1-5, 8) knows HTTP; core (``scoring``, ``detectors``, ``contract``) knows only numbers.
"""
