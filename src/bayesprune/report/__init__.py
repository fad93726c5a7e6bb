from bayesprune.report.diagrams import layer_sparsity, member_accuracies, reliability_diagram, sample_paths
from bayesprune.report.figures import accuracy_curves, learning_rate, sparsity_curves, training_course
from bayesprune.report.html import write_report
from bayesprune.report.load import Run, Traces, find_runs, load_run, run_labels
from bayesprune.report.selection import write_selection_report
from bayesprune.report.selection_table import selection_table
from bayesprune.report.style import NothingToDraw, save_png
from bayesprune.report.table import results_table

__all__ = [
    "load_run",
    "find_runs",
    "run_labels",
    "Run",
    "Traces",
    "results_table",
    "accuracy_curves",
    "sparsity_curves",
    "training_course",
    "learning_rate",
    "sample_paths",
    "reliability_diagram",
    "layer_sparsity",
    "member_accuracies",
    "save_png",
    "NothingToDraw",
    "write_report",
    "write_selection_report",
    "selection_table",
]
