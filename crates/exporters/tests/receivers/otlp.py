"""An OTLP receiver from the Python packages of OpenTelemetry and gRPC.

Prints the ports that it listens on (gRPC, which may be given, and HTTP), then every request that it
was sent, decoded, as a line of JSON. A field that the protocol does not have
is an error.
"""

import gzip
import json
import sys
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.unknown_fields import UnknownFieldSet
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

lock = threading.Lock()


def unknown(message):
    if len(UnknownFieldSet(message)) > 0:
        return True
    for field, value in message.ListFields():
        if field.message_type is not None:
            parts = value if field.is_repeated else [value]
            if any(unknown(part) for part in parts):
                return True
    return False


def tell(signal, protocol, request, metadata):
    line = {
        "signal": signal,
        "protocol": protocol,
        "unknown": unknown(request),
        "metadata": metadata,
        "request": MessageToDict(request),
    }
    with lock:
        print(json.dumps(line), flush=True)


class Logs(logs_service_pb2_grpc.LogsServiceServicer):
    def Export(self, request, context):
        tell("logs", "grpc", request, dict(context.invocation_metadata()))
        return logs_service_pb2.ExportLogsServiceResponse()


class Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def Export(self, request, context):
        tell("traces", "grpc", request, dict(context.invocation_metadata()))
        return trace_service_pb2.ExportTraceServiceResponse()


PATHS = {
    "/v1/logs": (
        "logs",
        logs_service_pb2.ExportLogsServiceRequest,
        logs_service_pb2.ExportLogsServiceResponse,
    ),
    "/v1/traces": (
        "traces",
        trace_service_pb2.ExportTraceServiceRequest,
        trace_service_pb2.ExportTraceServiceResponse,
    ),
}


class Http(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        signal, request, response = PATHS[self.path]
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        assert self.headers["content-type"] == "application/x-protobuf"
        message = request()
        message.ParseFromString(body)
        tell(signal, "http", message, dict(self.headers))
        answer = response().SerializeToString()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
logs_service_pb2_grpc.add_LogsServiceServicer_to_server(Logs(), server)
trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), server)
port = sys.argv[1] if len(sys.argv) > 1 else "0"
grpc_port = server.add_insecure_port(f"127.0.0.1:{port}")
server.start()
http = ThreadingHTTPServer(("127.0.0.1", 0), Http)
threading.Thread(target=http.serve_forever, daemon=True).start()
print(json.dumps({"grpc": grpc_port, "http": http.server_address[1]}), flush=True)
# Until whoever started it is gone.
sys.stdin.read()
