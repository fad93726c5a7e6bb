"""A trained model without its training code: a folder that loads anywhere, an ensemble in one call, measured speed."""

from bayesprune.deploy.ensemble import Ensemble
from bayesprune.deploy.export import export_onnx, export_program
from bayesprune.deploy.folder import load, save
from bayesprune.deploy.profile import Profile, profile
from bayesprune.deploy.timing import Comparison, compare_times
from bayesprune.deploy.unstructured import UnstructuredReport, unstructured_report

__all__ = [
    "save",
    "load",
    "Ensemble",
    "export_onnx",
    "export_program",
    "profile",
    "Profile",
    "compare_times",
    "Comparison",
    "unstructured_report",
    "UnstructuredReport",
]
