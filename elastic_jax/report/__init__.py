"""What did the study find? One page, its figures and a short table, made from `measures.parquet` alone."""

from elastic_jax.callable_modules import calls
from elastic_jax.report.page import render
from elastic_jax.report.summary import summary

__all__ = ["render", "summary"]

calls(__name__, "elastic_jax.report.page:render")
