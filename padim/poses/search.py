"""The pose of a part, found fast: every angle and shift on a coarse grid, then steps uphill on finer ones.

`padim.poses.plain` is the specification. Between the two, the picture is compared with the template on rings about
the part's middle: what is nearly symmetric fits at several angles, which only its details tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy.fft
import scipy.ndimage
from numpy.typing import NDArray
from PIL import Image

from padim.poses.grid import MULTIPLE, Grey, shrunk
from padim.poses.pose import Pose, moved

# How many cells of the template one of the coarse grid has, and one of the medium grid.
_COARSE, _MEDIUM = MULTIPLE, MULTIPLE // 2

_DEGREES = 6  # between the angles on the coarse grid

# How many poses go on from the coarse grid, from the rings, and to the template's own grid.
_FROM_COARSE, _FROM_RINGS, _TO_FINE = 2, 3, 2

# A pose that leaves so many times as much unexplained as the best one can't be the right one.
_DOUBTFUL = 2.0

_CLOSE = 0.1  # cells by which the last step moves the border at most


class Match(NamedTuple):
    """A pose in cells, and the correlation there, at most 1."""

    correlation: float
    pose: Pose


class Template:
    """A part, ready to be looked for.

    Attributes:
        values: the part's picture `[rows, columns]`, about 0 in the background.
        turns: whether parts are looked for at every angle, or only where they are shifted.
    """

    def __init__(self, values: Grey, *, turns: bool) -> None:
        self.values, self.turns = values, turns

    def find(self, picture: Grey) -> Match:
        """The pose with the largest correlation in a picture `[rows, columns]`."""
        medium = shrunk(picture, _MEDIUM)
        found = self._medium.climb(medium, self._on_coarse_grid(picture), steps=5)
        if self.turns:
            found = self._medium.climb(medium, self._on_rings(medium, found[0].pose), steps=3)
        least = 1 - _DOUBTFUL * max(1 - found[0].correlation, 1e-3)
        left = [match.pose.scaled(_MEDIUM) for match in found[:_TO_FINE] if match.correlation >= least]
        return self._fine.climb(picture, left, steps=6)[0]

    def correlation(self, picture: Grey) -> float:
        """The largest correlation on the coarse grid."""
        return float(self._correlations(picture).max())

    @cached_property
    def middle(self) -> NDArray[np.float64]:
        """The centre `(x, y)` of what differs from the background, in cells from the centre of the grid."""
        weights = self.values**2
        x, y = _centred(weights.shape[1]), _centred(weights.shape[0])
        middle: NDArray[np.float64] = np.array([weights.sum(axis=0) @ x, weights.sum(axis=1) @ y])
        return middle / max(float(weights.sum()), 1e-6)

    def _on_coarse_grid(self, picture: Grey) -> list[Pose]:
        """The poses, on the medium grid, with the largest of the correlations that peak over the angles."""
        correlations = self._correlations(picture)
        size, poses = correlations.shape[1:], []
        for number in _peaks(correlations.max(axis=(1, 2)))[:_FROM_COARSE]:
            cell = np.unravel_index(int(correlations[number].argmax()), size)
            y, x = ((int(at) + side // 2) % side - side // 2 for at, side in zip(cell, size, strict=True))
            poses.append(Pose(self._angles[number], (x, y)).scaled(_COARSE / _MEDIUM))
        return poses

    def _correlations(self, picture: Grey) -> Grey:
        """At every angle and every shift of the coarse grid: `[angles, 2 rows, 2 columns]`, shifts modulo the size."""
        small = shrunk(picture, _COARSE)
        size = 2 * small.shape[0], 2 * small.shape[1]
        norms = np.linalg.norm(small) * np.linalg.norm(shrunk(self.values, _COARSE))
        products: Grey = scipy.fft.irfft2(scipy.fft.rfft2(small, size) * self._spectra, size)
        return products / max(float(norms), 1e-6)

    @property
    def _angles(self) -> list[float]:
        return [float(angle) for angle in range(-180, 180, _DEGREES)] if self.turns else [0.0]

    @cached_property
    def _spectra(self) -> NDArray[np.complex64]:
        """The conjugate transforms of the template on the coarse grid, turned as it would lie in an image."""
        small = Image.fromarray(shrunk(self.values, _COARSE))
        turned = [np.asarray(moved(small, Pose(-angle), Image.Resampling.BILINEAR)) for angle in self._angles]
        spectra: NDArray[np.complex64] = scipy.fft.rfft2(np.stack(turned), (2 * small.height, 2 * small.width)).conj()
        return spectra

    def _on_rings(self, medium: Grey, pose: Pose) -> list[Pose]:
        """Poses on the medium grid that leave the part's middle where it is, at the angles that fit best."""
        own = self.middle / _MEDIUM
        middle = pose.rotation @ own + pose.shift
        products = (scipy.fft.rfft(_rings(medium, middle), axis=1) * self._ring_spectra).sum(axis=0)
        fits = scipy.fft.irfft(products)
        turns = [Pose(-360 * float(number) / len(fits)) for number in _peaks(fits)[:_FROM_RINGS]]
        return [Pose.of(turn.angle, middle - turn.rotation @ own) for turn in turns]

    @cached_property
    def _ring_spectra(self) -> NDArray[np.complex64]:
        """The conjugate transforms of the template's rings, each with the weight of its length."""
        spectra = scipy.fft.rfft(_rings(self._medium.values, self.middle / _MEDIUM), axis=1).conj()
        weighted: NDArray[np.complex64] = spectra * np.arange(1, len(spectra) + 1, dtype=np.float32)[:, None]
        return weighted

    @cached_property
    def _medium(self) -> _Hill:
        return _Hill(shrunk(self.values, _MEDIUM), turns=self.turns)

    @cached_property
    def _fine(self) -> _Hill:
        return _Hill(self.values, turns=self.turns)


class _Hill:
    """The correlation with a template as a hill over the poses, climbed by the steps of Gauss and Newton.

    Each step fits the picture, scaled to the template's contrast, to the template by least squares. It is taken in
    the template's frame, whose slopes never change (inverse compositional, Baker and Matthews 2004).
    """

    def __init__(self, values: Grey, *, turns: bool) -> None:
        rows, columns = values.shape
        x, y = _centred(columns), _centred(rows)[:, None]
        down, right = np.gradient(values)
        # How the values change where the template moves by a cell to the right, by one down, and turns by a radian.
        slopes = [right, down, right * y - down * x] if turns else [right, down]
        self.values = values
        self._slopes = np.stack(slopes).reshape(len(slopes), -1).astype(np.float32)
        self._inverse = np.linalg.pinv(self._slopes @ self._slopes.T)
        self._norm, self._radius = float(np.linalg.norm(values)), max(rows, columns) / 2

    def climb(self, picture: Grey, starts: Sequence[Pose], steps: int) -> list[Match]:
        """Where at most so many steps from each start lead, the largest correlation first."""
        image, norms = Image.fromarray(picture), max(float(np.linalg.norm(picture)) * self._norm, 1e-6)
        return sorted((self._climb(image, norms, start, steps) for start in starts), reverse=True)

    def _climb(self, image: Image.Image, norms: float, pose: Pose, steps: int) -> Match:
        best, template = Match(-1.0, pose), self.values.ravel()
        for _ in range(steps):
            values = np.asarray(moved(image, pose, Image.Resampling.BILINEAR)).ravel()
            product = float(np.einsum("i,i", values, template))  # whose products don't wait for threads of BLAS
            if product / norms <= best.correlation:
                break
            contrast = product / max(float(np.einsum("i,i", values, values)), 1e-6)
            step = self._inverse @ np.einsum("ij,j", self._slopes, contrast * values - template)
            turn = float(step[2]) if len(step) > 2 else 0.0
            best = Match(product / norms, pose)
            pose = pose.after(Pose.of(math.degrees(turn), step[:2]).inverse())
            if math.hypot(*step[:2]) + abs(turn) * self._radius < _CLOSE:
                return Match(best.correlation, pose)
        return best


def _centred(cells: int) -> NDArray[np.float64]:
    """Where cells lie, from the middle of a side."""
    return np.arange(0.5, cells) - cells / 2


def _peaks(values: Grey) -> NDArray[np.intp]:
    """Where values on a circle have local maxima, the largest first."""
    found = np.flatnonzero((values >= np.roll(values, 1)) & (values >= np.roll(values, -1)))
    return found[np.argsort(-values[found], kind="stable")]


def _rings(picture: Grey, middle: NDArray[np.float64]) -> Grey:
    """A picture on circles about a point, from the innermost: `[radii, angles]`."""
    rows, columns = picture.shape
    longer = max(rows, columns)
    radius, angle = np.arange(1, longer // 2)[:, None], np.linspace(0, 2 * np.pi, 4 * longer, endpoint=False)
    x, y = radius * np.cos(angle) + middle[0] + columns / 2 - 0.5, radius * np.sin(angle) + middle[1] + rows / 2 - 0.5
    values: Grey = scipy.ndimage.map_coordinates(picture, [y, x], order=1)
    return values
