"""``aggregating-worker deploy``: put an image on a Runpod endpoint.

``arguments`` reads the command line and what the project says of itself, ``command`` makes a request of both, and
``rest`` sends it.
"""
