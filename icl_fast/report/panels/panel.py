"""What a figure shows, as data. The page (SVG) and the static twins (matplotlib) draw the same panels.

A panel is one pair of axes with one of these on it:

- `lines`: series of y over x, in order of x: training curves, scores over snapshots. With errors a line has a band.
- `path`: series of points in the plane, joined in their order: trajectories, with a ring at the start and a disc at
  the end.
- `points`: series of points in the plane: a scatter, one series for all of a colour; times against depth. With errors
  a point has a whisker.
- `heatmap`: a value for every pair of x and y: losses by position over training, a matrix of heads by heads.

A series may belong to a model of the report, and then to a head of it: heads are coloured by depth or type, light up
together on the page, and a click opens all that was measured of them. Nothing has to: a panel of runs that the report
has no `ModelStudy` of has series without a model, which are coloured one after the other. `over_training` is for x that
grows with training, whatever it counts (`x_label` says): the page's switch between linear and logarithmic axes moves
it. Groups of panels under headings are all that the page needs of anything beside the table (`write_page`'s
`family` and `exemplars`); what could not be measured is a panel with `absent` for a reason, not a gap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from icl_fast.analysis.arrays import Floats

Kind = Literal["lines", "path", "points", "heatmap"]
Scale = Literal["sequential", "diverging"]


@dataclass(frozen=True)
class Series:
    """One line, path or cloud of points.

    Attributes:
        label: its name in a legend and on hover, such as `head 1.0` or `two_layer`.
        x, y: [n].
        error: [n] one standard error of y (or what it is at most, if the panel's caption says so); None: not known.
        model: the model of the report that it belongs to, by name; None: to none, or to none alone.
        head: (layer, head) of `model`, for what belongs to one head: it lights up with that head everywhere.
        names: [n] what each point is called on hover (of `points`, such as the heads of a model); empty: the label.
        opaque: False for heads outside the sample that is drawn opaque.
        evaluator: whose sequences it is measured on, of runs on exemplars: it has that evaluator's colour everywhere.
    """

    label: str
    x: Floats
    y: Floats
    error: Floats | None = None
    model: str | None = None
    head: tuple[int, int] | None = None
    names: tuple[str, ...] = ()
    opaque: bool = True
    evaluator: str | None = None


@dataclass(frozen=True)
class Heatmap:
    """Values over two axes.

    Attributes:
        x: [n] and y: [m], rising, such as tokens seen and context positions.
        z: [m,n]; not finite: nothing is painted.
        scale: `sequential`, or `diverging` about 0.
        low, high: values at the ends of the colours; what lies outside has the colour of the end.
        units: of z.
        x_names, y_names: [n] and [m] what stands at the axes for x and y, which are then 0, 1, ...: heads, evaluators;
            empty: the numbers themselves.
    """

    x: Floats
    y: Floats
    z: Floats
    scale: Scale
    low: float
    high: float
    units: str
    x_names: tuple[str, ...] = ()
    y_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Panel:
    """One figure.

    Attributes:
        key: unique in a report, `[a-z0-9_.-]+`; the name of the static twins' files.
        kind: `lines` (y over x, in order), `path` (a trajectory in the plane), `points`, `heatmap`.
        title: a few words; caption: what is shown, of what, by which definition and source (plain text).
        x_label, y_label: with units.
        over_training: x is how much a model has been trained: the axis ends where the values do, can be linear or
            logarithmic, and has the phase-change band. Of a series or column with a model, x is tokens seen.
        log_x, log_y: the axis is logarithmic to begin with (`over_training` ones follow the page's switch).
        series: of `lines`, `path`, `points`.
        heatmap: of `heatmap`.
        band: (start, end) of the phase change on the x axis; None: there was none, or the panel is not over training.
        y_range: (low, high) of the y axis, such as that of all models of a row; None: that of the values.
        absent: why there is nothing to show, such as "N/A: ..."; then there are no series.
    """

    key: str
    kind: Kind
    title: str
    caption: str
    x_label: str
    y_label: str
    over_training: bool = False
    log_x: bool = False
    log_y: bool = False
    series: tuple[Series, ...] = ()
    heatmap: Heatmap | None = None
    band: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    absent: str | None = None
