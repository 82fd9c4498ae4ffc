"""What an error of MLflow, of its server or of an artifact store means: wait, or mend something, and what."""

import re
from collections.abc import Iterator

from ..errors import BestrunError, UnreadableError
from ..formatting import mask_uri
from ..storage.files import StorageError

CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError")

UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"

PACKAGES = {  # module -> what pip calls a usable one
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
    "botocore": "boto3",  # brings it, and MLflow needs both
}


TEAM = ("psycopg", "boto3", "botocore")  # what the extra of that name brings


def install(module: str | None) -> str:
    """What to type so that a module can be imported."""
    extra = ", or all that a team's servers need: pip install 'bestrun[team]'" if module in TEAM else ""
    return f"pip install {PACKAGES.get(module or '', module) or 'what it names'}{extra}"


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error carries, wherever its library keeps it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif response is not None:  # requests
        status = getattr(response, "status_code", None)
    elif hasattr(error, "get_http_status_code"):  # MLflow
        status = error.get_http_status_code()
    else:
        status = None
    return status if isinstance(status, int) else None


def is_permanent(error: BaseException) -> bool:
    """Whether asking again is pointless: the store understood and refused, or something here must be mended first."""
    if isinstance(error, BestrunError):
        return not isinstance(error, StorageError | UnreadableError)  # a full disk may have room again
    if isinstance(error, ImportError | PermissionError) or type(error).__name__ in CREDENTIALS:
        return True
    if lost_a_race(error):
        return False
    if UNTRUSTED in str(error):
        return True
    status = status_of(error)
    if status is not None:
        return 400 <= status < 500 and status not in (408, 429)
    return any(is_permanent(cause) for cause in _causes(error) if not isinstance(cause, BestrunError))


def lost_a_race(error: BaseException) -> bool:
    """Whether another process made the same row at the same moment: MLflow looks for it and then inserts it. Of those
    that do so at once all but one get a 400 answer, and find the row when they try again.
    """
    return "UNIQUE" in str(error).upper()


def _causes(error: BaseException) -> Iterator[BaseException]:
    if cause := error.__cause__ or error.__context__:
        yield cause


def reason(error: BaseException) -> str:
    """Why something failed, in one line without credentials."""
    cause = re.sub(r".*\(Caused by (.*)\)$", r"\1", str(error), flags=re.DOTALL)  # of a chain, the end tells why
    lines = mask_uri(cause).splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:300]}"


def remedy(error: BaseException) -> str | None:
    """What to mend before it is sent again; None where waiting is all there is to do."""
    chain: list[BaseException] = [error]
    while causes := list(_causes(chain[-1])):
        chain += causes
    for each in chain:
        status = status_of(each)
        if isinstance(each, ImportError):
            # Without its C library psycopg is there, and cannot be imported
            return install("psycopg" if "pq wrapper" in str(each) else each.name)
        if type(each).__name__ in CREDENTIALS:
            return "give the artifact store's credentials, as its own tools take them"
        if isinstance(each, PermissionError):
            return "get the right to write there"
        if UNTRUSTED in str(each):
            return "name a file with the certificate of its authority: MLFLOW_TRACKING_SERVER_CERT_PATH=FILE"
        if status == 413:
            return "raise the server's or its proxy's limit for a file (nginx: client_max_body_size)"
        if status == 404 and "NoSuchBucket" in str(each):
            return "make the bucket, or let the experiment keep its artifacts in another: experiment=NAME"
        if status in (401, 403):
            return "give user and password, or get the right to write there"
    return None
