"""From bytes to pixels and rows, within limits; foreign exceptions become ``InputError``s.

``body`` reads a request, ``images`` decodes pictures, ``tables`` reads csv and JSON rows.
"""
