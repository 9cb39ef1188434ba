"""Open Inference Protocol v2: from the bytes of a request to arrays, and from arrays to an answer.

The JSON part of a body names the tensors. The elements of one are in it (``data``, flat or nested,
row by row), or behind it by the binary extension: ``Inference-Header-Content-Length`` says where
the JSON ends, ``binary_data_size`` how many bytes each tensor has, in the order of the tensors,
little-endian. A shape is a claim: it is compared with the elements there are, before anything is
made of its size.

``request`` reads the form of a request, ``elements`` what is in a tensor, ``inputs`` makes pixels
and rows of it, ``answer`` writes.
"""

HEADER_LENGTH = "Inference-Header-Content-Length"
LENGTH_BYTES = 4
"""Of the number before each element of BYTES in binary data."""
