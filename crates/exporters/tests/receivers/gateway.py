"""A POLKU gateway with the behaviour that was measured, from proto/polku.

Compiles the messages with gRPC's own tools, prints its port, then every event
that arrives as a line of JSON. The first argument says how it behaves:

ack      every event of a batch is acknowledged; a batch over 4 MiB ends the
         stream without an acknowledgement, raw bytes are refused
silent   reads, and acknowledges nothing
ends     ends the stream instead of reading the first batch of each cluster
takes    the same, but has read it, and only does not acknowledge it
errors   acknowledges, and tells of each event whose subtype is in the further
         arguments, as SUBTYPE=CODE, that it was refused so; SUBTYPE=CODE*N: the
         first N times that a cluster sends it

An event's line says what the gateway answers: acknowledged, a code, or nothing.
"""

import base64
import json
import pathlib
import sys
import tempfile
import threading
from collections import Counter
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
# Clusters that sent a batch, and how often they sent an event that is refused.
known, tries = set(), Counter()


def is_first_of(cluster):
    with lock:
        is_first = cluster not in known
        known.add(cluster)
        return is_first


def refusal(cluster, event):
    code, _, times = refused.get(event.metadata["subtype"], "").partition("*")
    with lock:
        tries[cluster, event.id] += 1
        return None if times and tries[cluster, event.id] > int(times) else code or None


def tell(batch, event, answer):
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
        "answer": answer,
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
            ends = behaviour in ("ends", "takes") and is_first_of(batch.cluster)
            if ends and behaviour == "ends":
                return
            events = batch.events.events
            assert all(len(event.id) == 26 for event in events)
            ack = gateway_pb2.Ack(event_ids=[event.id for event in events])
            for event in events:
                code = refusal(batch.cluster, event)
                if code:
                    ack.errors.add(event_id=event.id, code=code, message="as it was asked to")
                is_silent = ends or behaviour == "silent"
                tell(batch, event, None if is_silent else code or "acknowledged")
            if ends:
                return
            if behaviour != "silent":
                yield ack


options = [("grpc.max_receive_message_length", 64 << 20)]
server = grpc.server(futures.ThreadPoolExecutor(max_workers=8), options=options)
gateway_pb2_grpc.add_GatewayServicer_to_server(Gateway(), server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(json.dumps({"grpc": port}), flush=True)
# Until whoever started it is gone.
sys.stdin.read()
