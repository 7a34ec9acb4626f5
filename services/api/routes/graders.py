"""/v1/fine_tuning/alpha/graders: not offered; the answer says so instead of an unknown URL."""

from litestar import post

from shared.errors import UnsupportedMethod
from shared.schemas.errors import ErrorResponse

_MESSAGE = "Graders and reinforcement fine-tuning are not offered by this server; use the method 'supervised' or 'dpo'."


@post("/v1/fine_tuning/alpha/graders/run", status_code=200, operation_id="runGrader")
async def run_grader() -> ErrorResponse:
    """Not offered yet: always 400 with code `unsupported_method`."""
    raise UnsupportedMethod(_MESSAGE, param="grader")


@post("/v1/fine_tuning/alpha/graders/validate", status_code=200, operation_id="validateGrader")
async def validate_grader() -> ErrorResponse:
    """Not offered yet: always 400 with code `unsupported_method`."""
    raise UnsupportedMethod(_MESSAGE, param="grader")


ROUTES = [run_grader, validate_grader]
