mod answers;
mod mapping;
mod settings;
