"""LitServe as it comes. It reads the annotations of `decode_request`, so they are no strings here."""

import sys
from typing import Any

import litserve
from starlette.responses import Response
from work import PATH, ROWS, WORKERS, generator


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.make = generator()

    def decode_request(self, request: dict[str, Any]) -> int:
        return int(request["seed"])

    def batch(self, inputs: list[int]) -> list[int]:
        return inputs

    def predict(self, x: list[int]) -> list[bytes]:
        return self.make(x)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="image/png")


if __name__ == "__main__":
    api = Api(max_batch_size=ROWS, batch_timeout=0.002, api_path=PATH)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS)
    server.run(host="127.0.0.1", port=sys.argv[1], generate_client_file=False, log_level="warning")
