"""petseg: U-Net and SegNet on cats and dogs, trained and compared under one fair budget.

Importing this package imports neither torch nor numpy, so that `petseg --help` answers at once.
"""

__version__ = "0.1.0"
