"""The HTTP server and the batch runner: requests of other servers' APIs.

``server.py`` routes a request, and a file of ``apis/`` reads its body (``request_body.py``). The folder of the API
converts the body to engine requests, and the output of these requests to a response.
"""
