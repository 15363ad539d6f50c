"""The typed recipe: what a YAML file and a command line may say, checked before anything heavy is imported."""

from stillhouse.recipe.check import check
from stillhouse.recipe.code import CodeOptions
from stillhouse.recipe.document import dump
from stillhouse.recipe.evaluating import AgreementOptions, EvaluateOptions, JudgeOptions, TasksOptions
from stillhouse.recipe.inspection import InspectOptions
from stillhouse.recipe.options import (
    DemoOptions,
    ExportOptions,
    GenerateOptions,
    MethodsOptions,
    ReportOptions,
    VocabMapOptions,
)
from stillhouse.recipe.parse import OPTIONS, parse
from stillhouse.recipe.schema import Data, Evaluation, Recipe, Student, Teacher
from stillhouse.recipe.suite import SuiteOptions

__all__ = [
    "OPTIONS",
    "AgreementOptions",
    "CodeOptions",
    "Data",
    "DemoOptions",
    "EvaluateOptions",
    "Evaluation",
    "ExportOptions",
    "GenerateOptions",
    "InspectOptions",
    "JudgeOptions",
    "MethodsOptions",
    "Recipe",
    "ReportOptions",
    "Student",
    "SuiteOptions",
    "TasksOptions",
    "Teacher",
    "VocabMapOptions",
    "check",
    "dump",
    "parse",
]
