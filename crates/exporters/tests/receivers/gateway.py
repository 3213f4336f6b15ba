"""A POLKU gateway with the behaviour that was measured, from proto/polku.

Compiles the messages with gRPC's own tools, prints its port, then every event
that arrives as a line of JSON. The first argument says how it behaves:

ack      every event of a batch is acknowledged; a batch over 4 MiB ends the
         stream without an acknowledgement, raw bytes are refused
silent   reads, and acknowledges nothing
ends     ends the stream instead of acknowledging the first batch
errors   acknowledges, and tells of each event whose subtype is in the further
         arguments, as SUBTYPE=CODE, that it was refused so
"""

import base64
import json
import pathlib
import sys
import tempfile
import threading
from concurrent import futures

import grpc
from google.protobuf.unknown_fields import UnknownFieldSet
from grpc_tools import protoc

protos = pathlib.Path(__file__).resolve().parents[4] / "proto"
out = tempfile.TemporaryDirectory()
arguments = [f"-I{protos}", f"--python_out={out.name}", f"--grpc_python_out={out.name}"]
files = ["polku/v1/gateway.proto", "polku/event/v1/event.proto"]
assert protoc.main(["protoc", *arguments, *files]) == 0
sys.path.insert(0, out.name)

from polku.v1 import gateway_pb2, gateway_pb2_grpc  # noqa: E402

behaviour, refused = sys.argv[1], dict(word.split("=") for word in sys.argv[2:])
lock = threading.Lock()
ended = threading.Event()


def tell(batch, event):
    line = {
        "source": batch.source,
        "cluster": batch.cluster,
        "id": event.id,
        "time": event.timestamp_unix_ns,
        "event_source": event.source,
        "event_type": event.event_type,
        "metadata": dict(event.metadata),
        "payload": json.loads(event.payload),
        "payload_bytes": base64.b64encode(event.payload).decode(),
        "severity": event.severity,
        "outcome": event.outcome,
        "unknown": len(UnknownFieldSet(event)) + len(UnknownFieldSet(batch)),
    }
    with lock:
        print(json.dumps(line), flush=True)


class Gateway(gateway_pb2_grpc.GatewayServicer):
    def StreamEvents(self, batches, context):
        for batch in batches:
            if batch.WhichOneof("payload") != "events":
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown format")
            if batch.ByteSize() > 4 << 20:
                return
            if behaviour == "ends" and not ended.is_set():
                ended.set()
                return
            events = batch.events.events
            assert all(len(event.id) == 26 for event in events)
            for event in events:
                tell(batch, event)
            if behaviour == "silent":
                continue
            ack = gateway_pb2.Ack(event_ids=[event.id for event in events])
            for event in events:
                code = refused.get(event.metadata["subtype"])
                if code:
                    ack.errors.add(event_id=event.id, code=code, message="as it was asked to")
            yield ack


options = [("grpc.max_receive_message_length", 64 << 20)]
server = grpc.server(futures.ThreadPoolExecutor(max_workers=8), options=options)
gateway_pb2_grpc.add_GatewayServicer_to_server(Gateway(), server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(json.dumps({"grpc": port}), flush=True)
# Until whoever started it is gone.
sys.stdin.read()
