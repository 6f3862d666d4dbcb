// Which sign is in a video? Asks Triton's `recognize_sign` over HTTP. Needs a JDK, 11 or newer, and nothing else.
//
//     java RecognizeSign.java localhost:8000 clip.mp4
//
// Prints `rank gloss confidence`, best first.

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Locale;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

import static java.nio.charset.StandardCharsets.UTF_8;

public class RecognizeSign {
    // A body is JSON, then the tensors' raw bytes, little-endian; this header says where the JSON ends.
    private static final String JSON_LENGTH = "Inference-Header-Content-Length";

    public static void main(String[] arguments) throws InterruptedException {
        if (arguments.length != 2) {
            fail("usage: java RecognizeSign.java SERVER VIDEO");
        }
        try {
            print(ask(arguments[0], Files.readAllBytes(Path.of(arguments[1]))));
        } catch (NoSuchFileException error) {
            fail("cannot read " + arguments[1] + ": there is no such file");
        } catch (IOException error) {
            fail("no answer from " + arguments[0] + ": " + error);
        }
    }

    private static HttpResponse<byte[]> ask(String server, byte[] video) throws IOException, InterruptedException {
        // One BYTES element: its length in four bytes, then the file as it is, whatever its container. Further inputs,
        // where wanted: {"name":"TOP_K","datatype":"INT32","shape":[1],"data":[5]}. Where the server has several
        // models: "parameters":{"model":"name"} beside "inputs".
        byte[] length = ByteBuffer.allocate(4).order(ByteOrder.LITTLE_ENDIAN).putInt(video.length).array();
        byte[] json = ("{\"inputs\":[{\"name\":\"VIDEO\",\"datatype\":\"BYTES\",\"shape\":[1],"
                + "\"parameters\":{\"binary_data_size\":" + (4 + video.length) + "}}],"
                + "\"outputs\":[{\"name\":\"GLOSS\",\"parameters\":{\"binary_data\":true}},"
                + "{\"name\":\"CONFIDENCE\",\"parameters\":{\"binary_data\":true}}]}").getBytes(UTF_8);
        ByteArrayOutputStream body = new ByteArrayOutputStream(json.length + 4 + video.length);
        body.write(json);
        body.write(length);
        body.write(video);
        HttpRequest request = HttpRequest.newBuilder(URI.create("http://" + server + "/v2/models/recognize_sign/infer"))
                .header(JSON_LENGTH, String.valueOf(json.length))
                .timeout(Duration.ofSeconds(60))
                .POST(BodyPublishers.ofByteArray(body.toByteArray()))
                .build();
        HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
        return client.send(request, BodyHandlers.ofByteArray());
    }

    private static void print(HttpResponse<byte[]> response) {
        byte[] body = response.body();
        if (response.statusCode() != 200) {
            fail(first("\"error\":\"((?:[^\"\\\\]|\\\\.)*)\"", new String(body, UTF_8)).replaceAll("\\\\(.)", "$1"));
        }
        int jsonLength = (int) response.headers().firstValueAsLong(JSON_LENGTH).orElseThrow();
        String json = new String(body, 0, jsonLength, UTF_8);
        int count = Integer.parseInt(first("\"name\":\"GLOSS\"[^{}]*\"shape\":\\[(\\d+)\\]", json));
        ByteBuffer tensors = ByteBuffer.wrap(body, jsonLength, body.length - jsonLength).order(ByteOrder.LITTLE_ENDIAN);
        String[] glosses = new String[count];
        for (int place = 0; place < count; place++) {
            byte[] gloss = new byte[tensors.getInt()];
            tensors.get(gloss);
            glosses[place] = new String(gloss, UTF_8);
        }
        for (int place = 0; place < count; place++) {
            System.out.printf(Locale.ROOT, "%d %s %.4f%n", place + 1, glosses[place], tensors.getFloat());
        }
    }

    private static String first(String pattern, String text) {
        Matcher found = Pattern.compile(pattern).matcher(text);
        return found.find() ? found.group(1) : text;
    }

    private static void fail(String sentence) {
        System.err.println(sentence);
        System.exit(1);
    }
}
