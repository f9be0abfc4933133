"""The server against its own OpenAPI document: requests that fit it and that do not, drawn by schemathesis."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from serving import hadal_server, make_run

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
          negative_data_rejection]  # fmt: skip


@pytest.mark.parametrize(
    ("paths", "cases"), [("/v1/", 40), pytest.param("/", 2000, marks=pytest.mark.long)], ids=["some", "all"]
)
def test_no_server_error_and_no_answer_outside_the_document(tmp_path, paths, cases):
    run = make_run(tmp_path / "run")
    with hadal_server(tmp_path / "h.db", models=[str(run)], max_tokens=6) as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
        operations = [operation for operation in operations if operation.path.startswith(paths)]
        assert len(operations) > (30 if paths == "/" else 3)
        tried = []
        for operation in operations:
            for mode in GenerationMode:

                @given(case=operation.as_strategy(generation_mode=mode))
                @settings(
                    max_examples=-(-cases // len(operations) // 2), deadline=None, database=None,
                    derandomize=True, suppress_health_check=list(HealthCheck),
                )  # fmt: skip
                def try_it(case):
                    response = case.call(timeout=60)
                    tried.append(response.status_code)
                    case.validate_response(response, checks=CHECKS)

                try:
                    try_it()
                except Unsatisfiable:
                    assert mode is GenerationMode.NEGATIVE  # nothing about it can be wrong
        assert len(tried) >= cases / 2 and {200, 422} <= set(tried) and max(tried) < 500
