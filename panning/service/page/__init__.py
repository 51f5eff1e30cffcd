"""The page: HTML made by the server from what is stored, with JavaScript modules that ask the API as any other caller does.

All of it lies in the package: no page asks another machine for anything.
"""
