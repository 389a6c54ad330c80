"""Puts the image on an endpoint.

``options`` reads what is asked for, ``project`` what the project says of itself; ``bodies`` makes a request of both,
and ``rest`` sends it.
"""
