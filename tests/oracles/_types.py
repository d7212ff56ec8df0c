"""The one array type of the oracles: NumPy, floating point; shapes stand in the docstrings."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
