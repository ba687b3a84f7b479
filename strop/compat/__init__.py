"""Old import lines: `import strop.compat` makes those of MMRazor, NNI 1.9's NAS, mmcls and mmcv reach Strop's classes.

Each old package is only answered for where the real one is not installed. The classes are Strop's own, not copies.

>>> import strop.compat
>>> from mmrazor.registry import MODELS
>>> import strop.registry
>>> MODELS is strop.registry.MODELS
True
"""

from strop.compat.finder import Finder, OldImportError, OldNameError, Table
from strop.compat.mmrazor import MMRAZOR
from strop.compat.nni import NNI
from strop.compat.openmmlab import MMCLS, MMCV, ExtendingFinder

FINDER = Finder([MMRAZOR, NNI, MMCLS, MMCV])
EXTENDING = ExtendingFinder()


def activate() -> None:
    """Answer for the old packages that are not installed; calling it again does no harm.

    A user's own packages under an old path (a folder `mmrazor/models/mutators` with an `__init__.py`, in
    `sys.path`) are imported, so that the classes in them register themselves.
    """
    FINDER.activate()
    EXTENDING.activate()


activate()

__all__ = ['MMCLS', 'MMCV', 'MMRAZOR', 'NNI', 'Finder', 'OldImportError', 'OldNameError', 'Table', 'activate']
