import ExportedModel
import Foundation
import MLXClassifier

/// mlx-classify FOLDER IMAGE ...: labels, as the other commands print them.
let words = CommandLine.arguments.dropFirst().map { URL(fileURLWithPath: $0) }
guard words.count >= 2 else {
    FileHandle.standardError.write(Data("usage: mlx-classify FOLDER IMAGE ...\n".utf8))
    exit(2)
}
do {
    let classifier = try MLXClassifier(folder: words[0])
    for image in words.dropFirst() {
        let predictions = try await classifier.classify(PixelImage(contentsOf: image))
        print(image.path)
        for prediction in predictions {
            print(String(format: "  %5.1f%%  ", 100 * prediction.score) + prediction.label)
        }
    }
} catch {
    FileHandle.standardError.write(Data("mlx-classify: \(error.localizedDescription)\n".utf8))
    exit(2)
}
