import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlab.experiments.credentials import without_password, without_secrets
from starlab.experiments.spec import load_search, load_spec

ADDRESS = "postgresql+psycopg2://me:p4ss:w/rd@db.example:5432/mlflow"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://me:pass@mlflow.example:5000/base", "https://me:***@mlflow.example:5000/base"),
        ("https://:token@mlflow.example", "https://:***@mlflow.example"),
        (ADDRESS, "postgresql+psycopg2://me:***@db.example:5432/mlflow"),
        ("mysql://u:a@b@db/x", "mysql://u:***@db/x"),
        ("postgresql://db/x?user=me&password=pass&sslmode=require", "postgresql://db/x?user=me&password=***&sslmode=require"),
        ("https://mlflow.example/?api_key=abc", "https://mlflow.example/?api_key=***"),
        ("https://mlflow.example:5000/base", "https://mlflow.example:5000/base"),
        ("sqlite:////home/me/runs/mlflow.db", "sqlite:////home/me/runs/mlflow.db"),
        ("https://me@mlflow.example", "https://me@mlflow.example"),
    ],
)
def test_an_address_keeps_all_but_its_password(address: str, expected: str) -> None:
    assert without_password(address) == expected
    assert without_password(expected) == expected


@given(st.text(st.characters(categories=("L", "N"), include_characters="-_.~!$&'*+,;=:@/"), min_size=1))
def test_no_password_survives_in_an_address(password: str) -> None:
    hidden = without_password(f"https://me:{password}X1y2Z3@mlflow.example")
    assert "X1y2Z3" not in hidden
    assert hidden.endswith("@mlflow.example")


def test_values_of_secret_looking_variables_are_hidden_and_others_are_not() -> None:
    environment = {
        "AWS_SECRET_ACCESS_KEY": "abcdef/ghi+jkl",
        "MLFLOW_TRACKING_TOKEN": "tok-123456",
        "WANDB_API_KEY": "0123456789",
        "RAY_AUTH_TOKEN_PATH": "/home/me/token",
        "SOME_TOKEN": "1",
        "HOME": "/home/me",
    }
    said = without_secrets("abcdef/ghi+jkl tok-123456 0123456789 /home/me/token /home/me 1 https://a:b@c", environment)
    assert said == "*** *** *** /home/me/token /home/me 1 https://a:***@c"


def test_a_spec_is_written_and_shown_without_the_password_and_its_trials_still_have_it() -> None:
    spec = load_spec("demo", [f"tracking.uri={ADDRESS}"])
    assert spec.tracking.uri == ADDRESS
    for text in (repr(spec), str(spec.to_dict()), str(spec.without_password())):
        assert "p4ss" not in text
    assert spec.without_password().tracking.uri == without_password(ADDRESS)
    search = load_search("demo_search", [f"tracking.uri={ADDRESS}"])
    assert "p4ss" not in str(search.to_dict())
    assert search.spec_of({"model.encoder": "FF"}).tracking.uri == ADDRESS
