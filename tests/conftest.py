"""For all tests: property tests have no time limit an example, because these machines are sometimes several times slower."""

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
