import csv
import sys

from transformers import AutoFeatureExtractor, AutoTokenizer, Trainer, TrainingArguments

from mer_hf import TASK, CMEForEmotionClassification, MerProcessor, WordAligner, load_audio, pipeline
from mer_hf.data.collator import ClipDataset, EmotionCollator
from mer_hf.data.schema import make_row
from mer_hf.evaluation import compute_metrics
from mer_hf.hub import save_checkpoint


def main(table, output_dir, audio="facebook/wav2vec2-base", text="bert-base-uncased", epochs=10):
    """table: a CSV file with the columns path, text, label, split (train or validation)."""
    aligner, rows = WordAligner(), []
    with open(table, newline="", encoding="utf-8") as file:
        for clip in csv.DictReader(file):
            clip["words"] = aligner.align(load_audio(clip["path"]), clip["text"]).words if clip["text"] else None
            clip["audio"] = clip["id"] = clip.pop("path")
            rows.append(make_row(corpus="mine", **clip))
    labels = sorted({row["label"] for row in rows})
    label2id = {label: index for index, label in enumerate(labels)}
    processor = MerProcessor.default(AutoFeatureExtractor.from_pretrained(audio), AutoTokenizer.from_pretrained(text))
    model = CMEForEmotionClassification.from_backbones(
        audio=audio, text=text, label2id=label2id, id2label=dict(enumerate(labels))
    )
    arguments = TrainingArguments(
        output_dir, num_train_epochs=epochs, learning_rate=3e-5, eval_strategy="epoch", remove_unused_columns=False
    )
    train, validation = ([row for row in rows if row["split"] == split] for split in ("train", "validation"))
    trainer = Trainer(
        model,
        arguments,
        EmotionCollator(model.config),
        ClipDataset(train, processor, label2id),
        ClipDataset(validation, processor, label2id),
        compute_metrics=compute_metrics,
    )
    trainer.train()
    folder = save_checkpoint(model, processor, f"{output_dir}/model")
    return pipeline(TASK, model=str(folder))(rows[0]["audio"], text=rows[0]["text"])


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
