use wasmtime::component::Resource;

/// The resources of one type that an instance holds, by handle. A place that
/// came free is used again, so that a call allocates nothing here.
pub(crate) struct Handles<T> {
    places: Vec<Place<T>>,
    next_free: Option<u32>,
    count: usize,
}

enum Place<T> {
    Taken(T),
    Free { next: Option<u32> },
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self { places: Vec::new(), next_free: None, count: 0 }
    }
}

impl<T: 'static> Handles<T> {
    /// How many are held.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// # Panics
    /// After 2³² entries at once; callers have lower limits.
    pub(crate) fn insert(&mut self, entry: T) -> Resource<T> {
        self.count += 1;
        let index = match self.next_free {
            Some(index) => {
                let place = &mut self.places[index as usize];
                if let Place::Free { next } = place {
                    self.next_free = *next;
                }
                *place = Place::Taken(entry);
                index
            }
            None => {
                let index = u32::try_from(self.places.len()).expect("fewer than 2³² handles");
                self.places.push(Place::Taken(entry));
                index
            }
        };
        Resource::new_own(index)
    }

    /// # Errors
    /// When nothing is held there; a plugin cannot cause that, since the
    /// engine checks its handles.
    pub(crate) fn get(&self, handle: &Resource<T>) -> wasmtime::Result<&T> {
        match self.places.get(handle.rep() as usize) {
            Some(Place::Taken(entry)) => Ok(entry),
            _ => Err(missing(handle)),
        }
    }

    /// # Errors
    /// As [`Handles::get`].
    pub(crate) fn get_mut(&mut self, handle: &Resource<T>) -> wasmtime::Result<&mut T> {
        match self.places.get_mut(handle.rep() as usize) {
            Some(Place::Taken(entry)) => Ok(entry),
            _ => Err(missing(handle)),
        }
    }

    /// # Errors
    /// As [`Handles::get`].
    pub(crate) fn remove(&mut self, handle: Resource<T>) -> wasmtime::Result<T> {
        match self.places.get_mut(handle.rep() as usize) {
            Some(place @ Place::Taken(_)) => {
                let free = Place::Free { next: self.next_free };
                let Place::Taken(entry) = std::mem::replace(place, free) else {
                    return Err(missing(&handle));
                };
                self.next_free = Some(handle.rep());
                self.count -= 1;
                Ok(entry)
            }
            _ => Err(missing(&handle)),
        }
    }
}

#[cold]
fn missing<T: 'static>(handle: &Resource<T>) -> wasmtime::Error {
    wasmtime::Error::msg(format!("handle {} is not held", handle.rep()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_used_again_and_stale_handles_are_refused() {
        let mut handles = Handles::default();
        let (a, b) = (handles.insert("a"), handles.insert("b"));
        assert_eq!(handles.remove(Resource::new_own(a.rep())).unwrap(), "a");
        assert!(handles.get(&a).is_err() && handles.get_mut(&a).is_err());
        assert!(handles.remove(Resource::new_own(a.rep())).is_err());
        let c = handles.insert("c");
        let d = handles.insert("d");
        assert_eq!((c.rep(), d.rep()), (a.rep(), 2));
        assert_eq!((*handles.get(&b).unwrap(), *handles.get(&c).unwrap()), ("b", "c"));
        assert_eq!(handles.count(), 3);
    }
}
