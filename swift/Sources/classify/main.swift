import ConvNeXtV2
import Foundation

/// swift run classify FOLDER IMAGE ...: labels, as the other commands print them.
func report(_ error: Error) {
    FileHandle.standardError.write(Data("classify: \(error.localizedDescription)\n".utf8))
}

let words = CommandLine.arguments.dropFirst()
guard let folder = words.first, words.count >= 2 else {
    FileHandle.standardError.write(Data("usage: classify FOLDER IMAGE ...\n".utf8))
    exit(2)
}
let images = words.dropFirst()
var failed = 0
do {
    let classifier = try Classifier(folder: URL(fileURLWithPath: folder))
    for image in images {
        do {
            let predictions = try classifier.classify(PixelImage(contentsOf: URL(fileURLWithPath: image)))
            print(image)
            for prediction in predictions {
                print(String(format: "  %5.1f%%  ", 100 * prediction.score) + prediction.label)
            }
        } catch {
            failed += 1
            report(error)
        }
    }
} catch {
    report(error)
    exit(2)
}
exit(failed == 0 ? 0 : failed < images.count ? 1 : 2)
