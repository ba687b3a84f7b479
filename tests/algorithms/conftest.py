import pytest

from strop.registry import METRICS, MODELS


@pytest.fixture
def registries():
    """Forget what a test registers."""
    for registry in (MODELS, METRICS):
        registry.import_from_location()
    kept = [(registry, dict(registry._module_dict)) for registry in (MODELS, METRICS)]
    yield
    for registry, names in kept:
        registry._module_dict.clear()
        registry._module_dict.update(names)
