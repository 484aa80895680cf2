"""Loads the fixtures, in each process that runs tests."""

import gc


def pytest_configure(config):
    # What starts the others (-n) runs none, and would import for seconds before it does.
    if not config.getoption('numprocesses', None):
        gc.disable()  # what is imported is no garbage; shared_fixtures.py enables it again
        config.pluginmanager.import_plugin('shared_fixtures')
