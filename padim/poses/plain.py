"""The specification of the search: the pose of the largest correlation among every angle and every shift.

The correlation of a picture P with a template T at a pose is `<P, T_pose> / (|P| |T|)`, T_pose being the template
turned and shifted as the pose says and 0 beyond: 1 where the two differ in contrast alone. `padim.poses.search` finds
the same pose faster, and between the angles and cells.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import scipy.ndimage
import scipy.signal

from padim.poses.grid import Grey
from padim.poses.pose import Pose


def find_plainly(picture: Grey, template: Grey, angles: Iterable[float]) -> tuple[float, Pose]:
    """The largest correlation of a picture with a template of the same size, and its pose, in cells.

    Args:
        picture: `[rows, columns]`.
        template: `[rows, columns]`.
        angles: in degrees.
    """
    norms = np.linalg.norm(picture) * np.linalg.norm(template)
    middle = (np.array(template.shape) - 1) / 2
    best = -1.0, Pose()
    for angle in angles:
        turn = Pose(angle).rotation  # its own transpose for points (y, x) going back
        turned = scipy.ndimage.affine_transform(template, turn, middle - turn @ middle, order=1)
        correlations = scipy.signal.correlate(picture, turned, mode="full") / norms
        y, x = np.unravel_index(correlations.argmax(), correlations.shape)
        shift = np.array([x, y]) - (np.array(template.shape[::-1]) - 1)
        best = max(best, (float(correlations[y, x]), Pose.of(angle, shift)))
    return best
