//! Gives held-out clips the class numbers of those trained on.

use super::dataset::Dataset;
use crate::{Result, bail};

impl Dataset {
    /// Numbers the classes as `classes` does: for held-out clips, whose folders may be fewer than those trained on.
    ///
    /// # Errors
    /// A class of this dataset is not among them.
    pub fn number_classes_as(&mut self, classes: &[String]) -> Result<()> {
        let mut numbers = Vec::with_capacity(self.classes.len());
        for name in &self.classes {
            match classes.iter().position(|known| known == name) {
                Some(number) => numbers.push(number),
                None => bail!(
                    Data,
                    "class folder {name:?} of the held-out clips is not among the classes trained on: {classes:?}"
                ),
            }
        }
        for file in &mut self.files {
            file.class = file.class.map(|class| numbers[class]);
        }
        self.classes = classes.to_vec();
        Ok(())
    }
}
