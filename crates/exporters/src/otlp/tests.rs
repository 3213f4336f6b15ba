mod answers;
mod connections;
mod decoders;
mod mapping;
mod settings;
mod spans;
mod trust;
