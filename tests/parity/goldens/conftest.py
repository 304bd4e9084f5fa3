"""Nothing here is a test: the makers need libraries that the tests do without."""

collect_ignore_glob = ["*.py"]
