//! Settings that are set one after another.

/// Methods that set a field: `with_rank(lora_rank: usize);` takes a configuration and returns it with that `lora_rank`.
macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident($field:ident: $type:ty);)*) => {
        $(
            $(#[$doc])*
            pub fn $name(mut self, $field: $type) -> Self {
                self.$field = $field;
                self
            }
        )*
    };
}

pub(crate) use setters;
