mod answers;
mod decoders;
mod mapping;
mod settings;
mod trust;
