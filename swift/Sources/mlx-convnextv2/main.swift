import ClassifyCommand
import Foundation
import MLX
import MLXConvNeXtV2
import MLXConvNeXtV2Hub

// Exit status: 0 done, 1 some images failed (each named on standard error, the rest done), 2 nothing could be done.

func say(_ sentence: String) {
    FileHandle.standardError.write(Data("mlx-convnextv2: \(printable(sentence))\n".utf8))
}

func open(_ arguments: Arguments) async throws -> ImageClassifier {
    let dtypes: [String: DType] = ["float32": .float32, "float16": .float16, "bfloat16": .bfloat16]
    let dtype = arguments.dtype.flatMap { dtypes[$0] }
    var isFolder: ObjCBool = false
    if FileManager.default.fileExists(atPath: arguments.model, isDirectory: &isFolder), isFolder.boolValue {
        guard arguments.revision == nil else {
            throw ConvNeXtV2Error.invalid("--revision is for a Hub id, and \(arguments.model) is a folder")
        }
        return try await ImageClassifier.load(from: URL(fileURLWithPath: arguments.model), dtype: dtype)
    }
    return try await ImageClassifier.load(
        id: arguments.model, revision: arguments.revision, from: HubDownloader(), dtype: dtype)
}

do {
    guard let arguments = try Arguments.parse(Array(CommandLine.arguments.dropFirst())) else {
        print(Arguments.help, terminator: "")
        exit(0)
    }
    let classifier = try await open(arguments)
    var failed = 0
    for image in arguments.images {
        do {
            let found = try await classifier.classify(.url(URL(fileURLWithPath: image)), top: arguments.top)
            print(
                arguments.format == .table ? Report.table(image, found) : Report.json(image, found), terminator: "")
        } catch {
            failed += 1
            say(error.localizedDescription)
            if arguments.format == .json {
                print(Report.json(image, error: error.localizedDescription), terminator: "")
            }
        }
    }
    exit(failed == 0 ? 0 : failed < arguments.images.count ? 1 : 2)
} catch {
    say(error.localizedDescription)
    if case ConvNeXtV2Error.invalid = error { FileHandle.standardError.write(Data("\(Arguments.usage)\n".utf8)) }
    exit(2)
}
